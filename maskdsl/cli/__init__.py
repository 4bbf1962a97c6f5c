"""The command line: `maskdsl ...`. A file holds the commands of one kind."""

from maskdsl.cli.main import app, main

__all__ = ["app", "main"]
