"""``mercat completion``: the script that a shell sources."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    bash: eval "$(mercat completion bash)";  zsh: eval "$(mercat completion zsh)";
    fish: mercat completion fish | source
    """
    from node.cli.main import mercat

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(mercat, {}, "mercat", "_MERCAT_COMPLETE").source())
