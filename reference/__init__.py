"""What the documentation site says of sweep files, commands, metrics and catalog, written from the live models."""
