import gc

from app.kernel.collector import THRESHOLDS

# For the processes that a reloader starts too, which load this file under another name. Of the time that it takes to
# load the application, the collector would use an eighth to look at modules.
gc.set_threshold(*THRESHOLDS)

if __name__ == "__main__":
    try:
        from app.cli import run

        run()
    except KeyboardInterrupt:
        # So early that nothing was begun; what a shell expects of a program that SIGINT has ended.
        raise SystemExit(130) from None
