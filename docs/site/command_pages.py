"""The page of commands: every verb with its arguments and options, from the command line itself."""

import re

import typer

from qrlora.cli.command_line import app
from qrlora.cli.help_tables import fill
from qrlora.cli.verbs import VERBS

MARK = "<!-- every command -->"


def on_page_markdown(markdown, page, config, files):
    """The page with its mark replaced by the commands."""
    if MARK not in markdown:
        return markdown
    group = typer.main.get_command(app)
    sections = []
    for name, verb in VERBS.items():
        command = group.commands[name]
        sections.append(section(f"## {name}", f"qrlora {name}", command, verb.example))
        sections += [
            section(f"### {name} {inner}", f"qrlora {name} {inner}", child, "")
            for inner, child in getattr(command, "commands", {}).items()
        ]
    return markdown.replace(MARK, "\n\n".join(sections))


def section(heading: str, words: str, command, example: str) -> str:
    """A command: what it does, its example, a table of arguments and one of options."""
    arguments = [x for x in command.params if x.param_type_name == "argument"]
    options = [x for x in command.params if x.param_type_name == "option" and not x.hidden and x.name != "help"]
    usage = " ".join([words, *(argument(x) for x in arguments), *["[OPTIONS]"] * bool(options)])
    parts = [heading, cell(command.help or "", "\n\n"), f"```text\n{usage}\n```"]
    if example:
        parts.append(f"Example:\n\n```bash\n{example}\n```")
    if options:
        rows = [f"| {names(x)} | {cell(fill(x.help or ''))} | {default(x)} |" for x in options]
        parts.append("\n".join(["| option | what it does | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def argument(parameter) -> str:
    """An argument as its usage line has it."""
    name = parameter.metavar or parameter.name.upper()
    several = "..." * (parameter.nargs == -1 and not name.endswith("..."))
    return f"{name if parameter.required or name[0] == '[' else f'[{name}]'}{several}"


def names(option) -> str:
    """An option's names."""
    return ", ".join(f"`{x}`" for x in (*option.opts, *option.secondary_opts))


def default(option) -> str:
    """The default that its help shows."""
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    if option.required:
        return "required"
    if shown is None or shown is False or shown in ("", ()) or callable(shown):
        return ""
    return f"`{shown}`" if shown is option.default else shown


def cell(text: str, line_break: str = " ") -> str:
    """Help text as Markdown in one cell: rich's markup as Markdown's, no bar ends it, no `<` is a tag."""
    text = re.sub(r"\[/?bold\]", "`", text)
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"([*_<|])", r"\\\1", x) for x in pieces[::2]]
    return re.sub(r"\n\s*\n", "\0", "".join(pieces)).replace("\n", " ").replace("\0", line_break).strip()
