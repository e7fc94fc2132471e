"""The command `videomv`: `python -m tools.videomv` in the repository, `python -m videomv` after `pip install .`."""

from tools.videomv.commands import main

if __name__ == "__main__":
    main()
