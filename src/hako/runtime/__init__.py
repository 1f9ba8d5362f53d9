"""``hako-runtime``: the OCI command line, with the verbs, flags, output and exit codes of runc."""
