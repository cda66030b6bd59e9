-- I27: a policy is for one role and one command, and checks what is written
SELECT tablename::text AS place, policyname::text AS what, cmd AS facts
  FROM pg_policies
 WHERE schemaname = 'public'
   AND (cmd = 'ALL' OR 'public' = ANY (roles) OR cardinality(roles) <> 1
        OR (cmd IN ('INSERT', 'UPDATE') AND with_check IS NULL))
