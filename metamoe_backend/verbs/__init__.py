"""What each verb of the command line does: options in, one JSON-ready dict out. One module per group of verbs."""
