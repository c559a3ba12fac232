"""An evaluation of models: what the product makes of documents, requests and conversations with a given model.

`make eval`, or `python -m bench.evaluation --help`; docs/evaluation.md says what is measured and how.
"""
