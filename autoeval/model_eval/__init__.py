"""What the model-evaluation scripts in ``eval/`` stand on: one model named on a command line, tasks, an answer."""
