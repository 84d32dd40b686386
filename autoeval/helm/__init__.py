"""HELM's scenarios, adapters and metrics, driven in this process through a model we hold.

- ``spec.py``: a HELM configuration file -> tasks, one per benchmark. Light; the daemon imports it.
- ``run.py``: ``run_helm_task``, one task on one loaded model; imports HELM when called (about 4 s, once a process;
  ``imports.py`` does it ahead).
- ``runs.py``: its runs: which are complete, which are asked together, each within its time, its receipt.
- ``engine.py``: HELM requests answered in bulk; ``runner.py``: HELM's ``Runner`` and ``Client`` with it.
- ``prompts.py``: a run's prompts, built once for all checkpoints with the same tokenizer; ``tokens.py``: what that
  tokenizer made of texts, kept for the next checkpoint; ``kept_prompts.py``: when kept prompts go; ``plain.py``: HELM's
  objects as JSON; ``pickles.py``: data files that HELM unpickles, looked at before.
- ``registration.py``: a model is known to HELM while it is evaluated, and forgotten afterwards; ``tokenizer.py``: its
  tokenizer as HELM sees it.
- ``rouge.py``: ROUGE of summaries where HELM's own metric cannot be made.
- ``data_files.py``, ``stage.py``: which files a scenario needs, and putting them where it looks.
- ``results.py``: run directories -> scores with standard errors, and items.
- ``contained.py``: no output, no endless run (and ``autoeval.offline``: no network).

Scenarios that need no data (HELM generates it): ``synthetic_reasoning:mode=pattern_match`` (or ``induction``,
``variable_substitution``; reported as quasi-EM), ``synthetic_reasoning_natural:difficulty=easy`` (F1 over sets, so it
rises gradually) and ``dyck_language:num_parenthesis_pairs=3`` (EM-indicator). For a small model add
``max_train_instances=1`` (or 0) so that the prompt is short, and ``eval_split=test``: HELM draws ``eval_instances``
from validation and test together but reports the test split only. For a model with a window of 256 to 512 tokens::

    entries: [{description: "synthetic_reasoning:mode=pattern_match,eval_split=test,max_train_instances=1,model=text"}]

The prompt is then, after one example of the same form, ``Rules: Y - X * | - * X Y | … | Result: * pear - kiwi`` with
``Target:`` on the next line, and the right completion ``* Y - X`` up to the end of the line. Answering with any of the
four rules gives about 0.25. Most other scenarios' metrics need nltk's punkt_tab, in
``<output_path>/nltk_data`` or where ``NLTK_DATA`` points.
"""
