-- I28: no function is for everybody, each has its search path, and views act for their reader
SELECT p.oid::regprocedure::text AS place, 'EXECUTE' AS what, 'granted to everybody' AS facts
  FROM pg_proc p
 WHERE p.pronamespace = 'public'::regnamespace
   AND EXISTS (SELECT 1 FROM aclexplode(COALESCE(p.proacl, acldefault('f', p.proowner))) a
                WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')
UNION ALL
SELECT p.oid::regprocedure::text, 'search_path', 'not set'
  FROM pg_proc p
 WHERE p.pronamespace = 'public'::regnamespace
   AND p.prosqlbody IS NULL -- a body that was read when the function was made looks up no name later
   AND NOT EXISTS (SELECT 1 FROM unnest(p.proconfig) c WHERE c LIKE 'search_path=pg_catalog%')
UNION ALL
SELECT relname::text, 'security_invoker', 'not set'
  FROM pg_class
 WHERE relnamespace = 'public'::regnamespace AND relkind = 'v'
   AND NOT coalesce('security_invoker=true' = ANY (reloptions), false)
