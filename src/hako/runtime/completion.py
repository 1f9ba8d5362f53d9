"""``hako-runtime completion bash``: the completion script, made from the table of verbs."""

from __future__ import annotations

import sys

from hako.errors import ConfigError
from hako.runtime.flags import Flag
from hako.runtime.verbs import GLOBAL_FLAGS, HELP, VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from hako.runtime.verbs import Call

_SCRIPT = """\
# Completion of hako-runtime for bash. Load it with: source <(hako-runtime completion bash)
_hako_runtime() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb="" root=() words="" at
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        case ${{COMP_WORDS[at]}} in
            --root) ((at++)); root=(--root "${{COMP_WORDS[at]}}") ;;
            {valued}) ((at++)) ;;
            -*|=) ;;
            *) verb=${{COMP_WORDS[at]}}; break ;;
        esac
    done
    case $verb in
        "")
            case $before in
                --log-format) words="text json" ;;
                --log|--root|--criu) ;;
                *) words="{verbs} {options}" ;;
            esac ;;
{cases}
    esac
    if [[ -n $verb && $word != -* ]]; then
        words=""
        case $verb in
            {containers}) words=$(hako-runtime "${{root[@]}}" list --quiet 2>/dev/null) ;;
            completion) words="bash" ;;
            help) words="{verbs}" ;;
        esac
        [[ $before != --format && $before != -f || $verb != list && $verb != ps ]] || words="table json"
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    [[ ${{#COMPREPLY[@]}} -gt 0 || $word == -* || -z $verb && $before != --* ]] ||
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
}}
complete -F _hako_runtime hako-runtime
"""


def main(call: Call) -> int:
    """Print the script."""
    if call.args[0] != "bash":
        raise ConfigError(f"hako-runtime has no completion script for {call.args[0]!r}; it has one for bash.")
    sys.stdout.write(script())
    return 0


def script() -> str:
    """The completion script for bash."""
    verbs = {name: verb for name, verb in VERBS.items() if not verb.refused}
    return _SCRIPT.format(
        verbs=" ".join([*verbs, "help"]),
        options=_options(GLOBAL_FLAGS),
        valued="|".join(f"--{flag.name}" for flag in GLOBAL_FLAGS if flag.kind != "bool" and flag.name != "root"),
        cases="\n".join(f'        {name}) words="{_options((*verb.flags, HELP))}" ;;' for name, verb in verbs.items()),
        containers="|".join(name for name, verb in verbs.items() if "<container-id>" in verb.usage),
    )


def _options(flags: Iterable[Flag]) -> str:
    return " ".join(f"--{flag.name}" for flag in flags if flag.help and not flag.refused)
