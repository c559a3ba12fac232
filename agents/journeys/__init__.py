"""Journeys: an agent's configuration made in a short interview, then tried out on a few of the user's documents.

services.py starts a journey and takes answers; interview.py asks the model and checks its proposals; samples.py gets up
to three of the user's documents; trial.py shows what a proposed configuration finds in them.
"""
