-- name: upsert_operator
-- $1 email, $2 password hash, $3 role. Answers whether it is new.
INSERT INTO operator (email, password_hash, role) VALUES ($1, $2, $3)
ON CONFLICT (email) DO UPDATE SET password_hash = EXCLUDED.password_hash, role = EXCLUDED.role
RETURNING xmax = 0 AS created;

-- name: operator_by_email
SELECT email, password_hash, role FROM operator WHERE email = $1;
