"""Where workers live: a launcher starts them and never decides what they do."""
