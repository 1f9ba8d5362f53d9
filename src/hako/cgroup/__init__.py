"""Control groups of the host: where a container's VM and all that serves it live, and what they may use there."""
