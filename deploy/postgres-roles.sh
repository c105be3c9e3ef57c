#!/bin/sh
# Makes the roles and databases once, when PostgreSQL's container has made its cluster. Passwords are in a file.
set -eu
psql --set ON_ERROR_STOP=1 --username postgres --file /run/secrets/roles.sql
