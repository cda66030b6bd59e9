-- I21: every rule of the schema is in force: no key or check was left unproven
SELECT c.conrelid::regclass::text AS place, c.conname::text AS what,
       pg_get_constraintdef(c.oid) AS facts
  FROM pg_constraint c
 WHERE c.connamespace = 'public'::regnamespace AND c.contype IN ('c', 'f') AND NOT c.convalidated
UNION ALL
SELECT t.tgrelid::regclass::text, t.tgname::text, 'switched off'
  FROM pg_trigger t
  JOIN pg_class k ON k.oid = t.tgrelid AND k.relnamespace = 'public'::regnamespace
 WHERE t.tgenabled = 'D'
