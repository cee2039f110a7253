"""How Ray runs a study. Nothing else imports Ray."""
