"""The filesystem test list: what runs in a VM's containers (worker, checks) and what starts them (harness, pyroot)."""
