if __name__ == "__main__":
    try:
        from app.cli import run

        run()
    except KeyboardInterrupt:
        # So early that nothing was begun; what a shell expects of a program that SIGINT has ended.
        raise SystemExit(130) from None
