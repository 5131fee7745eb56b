-- Create the databases of Prefect and MLflow: sudo -u postgres psql -f deploy/postgres.sql
-- Then set the passwords: \password prefect and \password mlflow.
CREATE ROLE prefect LOGIN;
CREATE DATABASE prefect OWNER prefect;
CREATE ROLE mlflow LOGIN;
CREATE DATABASE mlflow OWNER mlflow;
\connect prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;
