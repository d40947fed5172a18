"""`python -m compress` is the command `compress-models`."""

from compress.cli import command

if __name__ == "__main__":
    command()
