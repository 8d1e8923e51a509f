"""What scripts and users import of the configuration: ConfigParser, CustomArgs, command.

Text -> dict (utils/config/config_file.py) -> the configuration as used (resolve.py) -> checked
(validate.py) -> objects (`ConfigParser.init_obj`). To add a class that a config can name, write it
in the section's folder; the keyword arguments of its constructor are its keys. Run as a script it
writes docs/config.schema.json again.
"""

from utils.config.command_line import command
from utils.config.config import ConfigParser
from utils.config.resolve import CustomArgs
from utils.files import ROOT

__all__ = ["ConfigParser", "CustomArgs", "command"]

if __name__ == "__main__":
    from utils.config.schema import write_schema

    print(f"written: {write_schema(ROOT / 'docs' / 'config.schema.json')}")
