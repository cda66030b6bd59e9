-- I25: the schema keeps what is not a digest out of every credential
SELECT expected.place, expected.column_name AS what, 'no check that is in force' AS facts
  FROM (VALUES ('user_sessions', 'session_token'), ('users', 'password_hash'),
               ('service_tokens', 'token_sha256'), ('user_service_tokens', 'token_sha256'),
               ('credential_tokens', 'token_sha256'), ('triggers', 'secret_sha256'))
       AS expected(place, column_name)
 WHERE NOT EXISTS (
       SELECT 1 FROM pg_constraint c
        WHERE c.connamespace = 'public'::regnamespace AND c.contype = 'c' AND c.convalidated
          AND c.conrelid = to_regclass('public.' || expected.place)
          AND strpos(pg_get_constraintdef(c.oid), expected.column_name) > 0)
