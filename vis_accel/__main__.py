"""`python -m vis_accel` is `vis-accel`."""

from vis_accel.cli import main

if __name__ == "__main__":
    main()
