-- Runs once, in the database of the compose file's PostgreSQL.
CREATE EXTENSION IF NOT EXISTS vector;
CREATE DATABASE adiuva_keys OWNER adiuva;
