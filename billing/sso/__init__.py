"""Single sign-on of teams, by OpenID Connect."""
