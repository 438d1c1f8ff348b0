"""What only development needs: embedded servers, a supervisor, demo data. In production only `main` imports it."""
