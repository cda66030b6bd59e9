-- I27: row-level security binds everybody on every table that has it
SELECT relname::text AS place, 'row-level security' AS what, 'not forced' AS facts
  FROM pg_class
 WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
   AND relrowsecurity AND NOT relforcerowsecurity
UNION ALL
SELECT c.relname::text, a.attname::text, 'a tenant''s rows without row-level security'
  FROM pg_class c
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
 WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
   AND NOT c.relrowsecurity
