"""`hako check`: is this host fit for hako, and what to do where it is not."""
