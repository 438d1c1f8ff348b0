import os

from app.kernel.observability.gc_tuning import collect_rarely_until_exit

# Also for the processes that a reloader starts, which load this file under another name.
collect_rarely_until_exit()
# No plugin of pydantic is used; to look for one, it reads the metadata of every installed package at each start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

if __name__ == "__main__":
    try:
        from app.cli import run

        run()
    except KeyboardInterrupt:
        # So early that nothing was begun; what a shell expects of a program that SIGINT has ended.
        raise SystemExit(130) from None
