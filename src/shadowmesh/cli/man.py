"""Manual pages from the definitions: `python -m shadowmesh.cli.man DIRECTORY [docs/configuration.md]`.

Writes shadowmesh.1, shadowmesh-relay.8 and shadowmesh-daemon.8; with docs/configuration.md, whose tables
have the keys, shadowmesh.yaml.5, too. The format is man(7), the date that of SOURCE_DATE_EPOCH, if it is set.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from shadowmesh import __version__
from shadowmesh.cli import ctl, daemon, relay
from shadowmesh.cli.arguments import parser_of

_FILES = {
    "relay": [
        ("/etc/shadowmesh/relay-config.yaml", "The configuration."),
        ("/etc/shadowmesh/relay-keys.json", "API keys, written by shadowmesh relay-keys."),
    ],
    "client": [
        ("/etc/shadowmesh/client-config.yaml", "The configuration."),
        ("/etc/shadowmesh/client-config.hosts", "The devices of the network, for shadowmesh invite."),
        ("/etc/shadowmesh/encryption.key", "The network key, where the configuration has it not."),
        ("/run/shadowmesh/api.token", "The token of the local API."),
        ("/var/lib/shadowmesh", "Device key and known peers."),
    ],
}
_STATUS = {
    "shadowmesh": [
        ("0", "All is well."),
        ("1", "Trouble, said in words."),
        ("2", "Wrong usage or configuration."),
    ],
    "program": [
        ("0", "Ended by SIGTERM or SIGINT."),
        ("1", "It cannot start."),
        ("2", "Wrong usage or configuration."),
    ],
}
_PAGE = "configuration.md"
_SIGNALS = [("SIGHUP", "Reads the configuration again."), ("SIGTERM", "Ends it in order.")]


def text(words: str) -> str:
    """Words as roff has them: nothing in them is a request, an escape or a hyphen to break at. ASCII."""
    escaped = words.replace("\\", r"\e").replace("-", r"\-")
    escaped = re.sub(r"[^\0-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", escaped)
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def title(name: str, section: int, what: str) -> str:
    # Not today's: the same source gives the same page.
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    date = datetime.fromtimestamp(int(epoch), UTC).date().isoformat() if epoch else ""
    return (
        f'.TH {text(name.upper())} {section} "{date}" "ShadowMesh {__version__}" "ShadowMesh"\n'
        f".SH NAME\n{text(name)} \\- {text(what)}\n"
    )


def terms(pairs: list[tuple[str, str]]) -> str:
    """A list of terms and what is said about each."""
    return "".join(f".TP\n.B {text(term)}\n{text(said)}\n" for term, said in pairs)


def paragraphs(words: str) -> str:
    """Paragraphs of a docstring; in it a backtick is what a terminal has no bold for."""
    parts = [" ".join(part.split()) for part in words.split("\n\n")]
    return ".PP\n".join(text(re.sub("`([^`]*)`", r"\1", part)) + "\n" for part in parts)


def see_also(name: str) -> str:
    pages = ["shadowmesh(1)", "shadowmesh\\-relay(8)", "shadowmesh\\-daemon(8)", "shadowmesh.yaml(5)"]
    return (
        ".SH SEE ALSO\n" + ", ".join(each for each in pages if not each.startswith(f"{text(name)}(")) + "\n"
    )


def commands(command: click.Command, ctx: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """All below a command, each with its context; what is below a group follows it."""
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            if (below := command.get_command(ctx, name)) is not None:
                its = click.Context(below, ctx, name)
                yield below, its
                yield from commands(below, its)


def shadowmesh_page() -> str:
    """shadowmesh(1), with every command."""
    root = click.Context(ctl.cli, info_name="shadowmesh")
    page = title("shadowmesh", 1, "join machines to a ShadowMesh network, and see how they are")
    page += ".SH SYNOPSIS\n.B shadowmesh\n.I COMMAND\n[options]\n"
    page += ".SH DESCRIPTION\n" + paragraphs(ctl.cli.help or "") + ".SH COMMANDS\n"
    for command, ctx in commands(ctl.cli, root):
        usage = " ".join(command.collect_usage_pieces(ctx))
        page += f".SS {text(ctx.command_path)} {text(usage)}\n{paragraphs(command.help or '')}"
        records = (param.get_help_record(ctx) for param in command.params)  # all but --help
        page += terms([each for each in records if each and each[1]])
    page += ".SH FILES\n" + terms(_FILES["client"])
    return page + ".SH EXIT STATUS\n" + terms(_STATUS["shadowmesh"]) + see_also("shadowmesh")


def program_page(words: tuple[str, str, str], files: str, *, required: bool) -> str:
    """The page of a program that runs as a service."""
    name, description, _ = words
    parser = parser_of(*words, required=required)
    page = title(name, 8, description[0].lower() + description[1:].rstrip("."))
    page += f".SH SYNOPSIS\n{text(parser.format_usage().removeprefix('usage: '))}"
    page += f".SH DESCRIPTION\n{text(description)}\nIt runs until it is ended, and logs to standard error.\n"
    options = parser._get_positional_actions() + parser._get_optional_actions()
    page += ".SH OPTIONS\n" + terms([(_term(each), (each.help or "").strip()) for each in options])
    page += ".SH SIGNALS\n" + terms(_SIGNALS) + ".SH FILES\n" + terms(_FILES[files])
    return page + ".SH EXIT STATUS\n" + terms(_STATUS["program"]) + see_also(name)


def _term(action: argparse.Action) -> str:
    value = f" {action.metavar}" if isinstance(action.metavar, str) else ""
    return ", ".join(f"{option}{value}" for option in action.option_strings) or value.strip()


def configuration_page(markdown: str) -> str:
    """shadowmesh.yaml(5) from the tables of docs/configuration.md."""
    page = title("shadowmesh.yaml", 5, "configuration of ShadowMesh relays and clients")
    page += ".SH DESCRIPTION\n" + paragraphs(
        "The relay reads relay-config.yaml, a client client-config.yaml, both in /etc/shadowmesh. A key with "
        "a dot is in a section: a.b is the line b: VALUE below the line a:. `shadowmesh check-config FILE` "
        "shows every mistake with its place.\n\nA page in parentheses is in /usr/share/doc/shadowmesh-relay "
        "or /usr/share/doc/shadowmesh-daemon, whichever is installed, or in docs of the source."
    )
    for heading in ("Relay", "Client"):
        page += f".SH {heading.upper()} CONFIGURATION\n"
        section = markdown.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        for row in re.findall(r"^\| `.*\|$", section, re.MULTILINE):
            key, kind, default, meaning, *reload = map(_plain, re.split(r"(?<!\\)\|", row)[1:-1])
            said = f"{kind}; default {default}; {meaning}."
            page += terms([(key, said + (f" Reload: {reload[0]}." if reload else ""))])
    return page + see_also("shadowmesh.yaml")


def _plain(cell: str) -> str:
    """A cell of a table without its marks, an asterisk in code is none; the pages of links in parentheses."""
    linked = re.sub(r"\[([^]]*)\]\(([^)#]*)[^)]*\)", lambda to: f"{to[1]} ({to[2] or _PAGE})", cell)
    parts = linked.replace(r"\|", "|").split("`")
    return "".join(part if n % 2 else part.replace("*", "") for n, part in enumerate(parts)).strip()


def main(argv: list[str]) -> None:
    """Entry point: writes the pages into the directory argv[0]."""
    if not 1 <= len(argv) <= 2:
        sys.exit("usage: python -m shadowmesh.cli.man DIRECTORY [docs/configuration.md]")
    directory = Path(argv[0])
    pages = {
        "shadowmesh.1": shadowmesh_page(),
        "shadowmesh-relay.8": program_page(relay.PROGRAM, "relay", required=False),
        "shadowmesh-daemon.8": program_page(daemon.PROGRAM, "client", required=True),
    }
    try:
        if argv[1:]:
            pages["shadowmesh.yaml.5"] = configuration_page(Path(argv[1]).read_text("utf-8"))
        directory.mkdir(parents=True, exist_ok=True)
        for name, page in pages.items():
            (directory / name).write_text(page, "utf-8")
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
