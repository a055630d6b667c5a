"""The sandbox: how a worker process is started, limited, watched and killed; nothing here knows what it runs."""
