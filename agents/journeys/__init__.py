"""An agent's configuration, made in a conversation: a few questions, then a look at what it would find.

interview.py is what the model is asked and how its answers are checked; samples.py gets up to three documents of the
user's; look.py shows what a configuration finds in them; sessions.py is the conversation: its rows and its verbs.
"""
