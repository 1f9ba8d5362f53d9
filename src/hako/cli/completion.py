"""``hako completion bash``: the completion script, made from the verbs and their options."""

from __future__ import annotations

import argparse
import importlib

from hako.cli import options
from hako.cli.main import VERBS

_CONTAINERS = (
    "exec",
    "logs",
    "attach",
    "stop",
    "kill",
    "pause",
    "unpause",
    "rm",
    "inspect",
    "stats",
    "trace",
    "update",
)
_IMAGES = ("run", "rmi")

_SCRIPT = """\
# Completion of hako for bash. Load it with: source <(hako completion bash)
_hako() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb="" at
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        case ${{COMP_WORDS[at]}} in
            --config) ((at++)) ;;
            -*) ;;
            *) verb=${{COMP_WORDS[at]}}; break ;;
        esac
    done
    local words=""
    case $verb in
        "") words="{verbs} --help --debug --config" ;;
{cases}
    esac
    if [[ -n $verb && $word != -* ]]; then
        case $verb in
            {containers})
                words+=" $(hako ps -a --format json 2>/dev/null | sed -n 's/.*"name": "\\([^"]*\\)".*/\\1/p')" ;;
            {images}) words+=" $(hako images 2>/dev/null | awk 'NR > 1 {{ print $1 }}')" ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    [[ ${{#COMPREPLY[@]}} -gt 0 || $word == -* || -z $verb ]] || mapfile -t COMPREPLY < <(compgen -f -- "$word")
}}
complete -F _hako hako
"""


def parser() -> options.Parser:
    """The command line of this verb."""
    parser = options.Parser("completion", "Print the completion script for a shell.", "bash")
    parser.add_argument("shell", choices=("bash",))
    return parser


def main(args: list[str]) -> int:
    """Print the script."""
    parser().parse_args(args)
    print(script(), end="")
    return 0


def script() -> str:
    """The completion script for bash."""
    cases = "\n".join(f'        {verb}) words="{" ".join(words_of(verb))}" ;;' for verb in VERBS)
    return _SCRIPT.format(
        verbs=" ".join(VERBS), cases=cases, containers="|".join(_CONTAINERS), images="|".join(_IMAGES)
    )


def words_of(verb: str) -> list[str]:
    """The long options, or the verbs of its own, that can follow ``verb``."""
    module = importlib.import_module(f"hako.cli.{VERBS[verb][0]}")
    words: list[str] = []
    parser: argparse.ArgumentParser = module.parser()
    for action in parser._actions:
        words += [option for option in action.option_strings if option.startswith("--")]
        if not action.option_strings and action.choices is not None:
            words += [str(choice) for choice in action.choices]
    return words
