"""`python -m asr`, which is what torchrun starts: the command line."""

from asr.cli.app import main

if __name__ == "__main__":
    main()
