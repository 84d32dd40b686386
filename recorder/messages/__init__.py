"""Messages about a run to people: what is said (``events``), in whose format (``lark``, ``slack``, ``webhook``), and how
it is sent: each once, politely, never in the way of the evaluation (``delivery``, ``outbox``)."""
