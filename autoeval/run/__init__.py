"""One evaluation now: OpenCompass's command line. ``run.py`` is the door."""
