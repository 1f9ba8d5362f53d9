"""hako beside runc, interleaved in one run: see docs/performance.md for what is measured and how to read it.

machine, noise, procs     what the machine is, how quiet it is, what its processes use
commands                  running the commands that are measured
engines, containerd       private engines to run containers and pods under, with pods, cri, layout for the latter
stats, model              numbers, and what a run of the benchmark has found
targets                   the runtimes: hako, runc
pieces                    what is measured, one module per subject
report                    text, JSON, Markdown and SVG
"""
