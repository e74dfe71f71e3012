"""The database: connection, migrations, events, ingestion of run results, and every SQL statement."""
