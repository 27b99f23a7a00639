-- name: register_edge
-- $1 edge id, $2 incarnation, $3 internal URL. Repeated by a running edge: it has been seen again.
INSERT INTO edge (id, incarnation, internal_url) VALUES ($1, $2, $3)
ON CONFLICT (id) DO UPDATE
SET incarnation = EXCLUDED.incarnation, internal_url = EXCLUDED.internal_url, last_seen = now();
