"""Questions to the catalogue; each finds what must not be there."""

from __future__ import annotations

from typing import Final

# I27: row-level security on, and binding the owner too.
TABLES_NOT_FORCED: Final = """
    SELECT relname FROM pg_class
     WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
       AND relrowsecurity AND NOT relforcerowsecurity
"""
# I27: one policy per role and command, and a check on what is written.
WIDE_POLICIES: Final = """
    SELECT tablename, policyname FROM pg_policies
     WHERE schemaname = 'public'
       AND (cmd = 'ALL' OR 'public' = ANY (roles) OR cardinality(roles) <> 1
            OR (cmd IN ('INSERT', 'UPDATE') AND with_check IS NULL))
"""
# I28: who may run what.
FUNCTIONS_OF_PUBLIC: Final = """
    SELECT p.oid::regprocedure FROM pg_proc p
     WHERE p.pronamespace = 'public'::regnamespace
       AND EXISTS (SELECT 1 FROM aclexplode(COALESCE(p.proacl, acldefault('f', p.proowner))) a
                    WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')
"""
# A body that was read when the function was made looks up no name later.
FUNCTIONS_WITHOUT_PATH: Final = """
    SELECT p.oid::regprocedure FROM pg_proc p
     WHERE p.pronamespace = 'public'::regnamespace AND p.prosqlbody IS NULL
       AND NOT EXISTS (SELECT 1 FROM unnest(p.proconfig) c WHERE c LIKE 'search_path=pg_catalog%%')
"""
VIEWS_OF_THEIR_OWNER: Final = """
    SELECT relname FROM pg_class
     WHERE relnamespace = 'public'::regnamespace AND relkind = 'v'
       AND NOT coalesce('security_invoker=true' = ANY (reloptions), false)
"""
# I29: the key's first column leads an index of the referencing table. Of a key over several columns
# one is enough: the workflow's executions are found by workflow, then looked through.
# One of the rows that have the key at all serves as well: what is looked for is never null.
FOREIGN_KEYS_WITHOUT_INDEX: Final = """
    SELECT c.conrelid::regclass, c.conname FROM pg_constraint c
     WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace
       AND NOT EXISTS (
            SELECT 1 FROM pg_index i JOIN pg_class k ON k.oid = i.indexrelid
              JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
             WHERE i.indrelid = c.conrelid
               AND (i.indpred IS NULL
                 OR pg_get_expr(i.indpred, i.indrelid) = '(' || a.attname || ' IS NOT NULL)')
               AND k.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')
               AND i.indkey[0] = c.conkey[1])
"""
# S54: a whole index whose columns begin another whole index.
PREFIX_INDEXES: Final = """
    SELECT a.indexrelid::regclass, b.indexrelid::regclass
      FROM pg_index a JOIN pg_index b ON b.indrelid = a.indrelid AND b.indexrelid <> a.indexrelid
      JOIN pg_class ca ON ca.oid = a.indexrelid
      JOIN pg_class cb ON cb.oid = b.indexrelid AND cb.relam = ca.relam
      JOIN pg_class t ON t.oid = a.indrelid AND t.relnamespace = 'public'::regnamespace
     WHERE a.indpred IS NULL AND b.indpred IS NULL AND NOT a.indisunique
       AND pg_get_expr(a.indexprs, t.oid) IS NOT DISTINCT FROM pg_get_expr(b.indexprs, t.oid)
       AND b.indkey::text || ' ' LIKE a.indkey::text || ' %%'
"""
# All that a schema is, one line each: to hold two databases against each other.
FINGERPRINT: Final = """
    SELECT format('column %%s.%%s %%s null=%%s default=%%s generated=%%s', c.relname, a.attname,
                  format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
                  pg_get_expr(d.adbin, d.adrelid), a.attgenerated) AS line
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
      LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
       AND NOT a.attisdropped
    UNION ALL
    SELECT format('constraint %%s.%%s %%s', conrelid::regclass, conname, pg_get_constraintdef(oid))
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    UNION ALL
    SELECT format('index %%s', indexdef) FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT format('function %%s %%s %%s', pg_get_functiondef(oid), proowner::regrole,
                  (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(proacl) a))
      FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL
    SELECT format('trigger %%s', pg_get_triggerdef(t.oid))
      FROM pg_trigger t WHERE NOT t.tgisinternal
    UNION ALL
    SELECT format('policy %%s.%%s %%s %%s %%s %%s', tablename, policyname, cmd, roles, qual,
                  with_check)
      FROM pg_policies WHERE schemaname = 'public'
    UNION ALL
    SELECT format('relation %%s %%s rls=%%s,%%s %%s %%s', relkind, relname, relrowsecurity,
                  relforcerowsecurity, reloptions,
                  (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(relacl) a))
      FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname !~ '^alembic_version'
    UNION ALL
    SELECT format('column grants %%s.%%s %%s', attrelid::regclass, attname,
                  (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(attacl) a))
      FROM pg_attribute WHERE attacl IS NOT NULL
       AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    UNION ALL
    SELECT format('type %%s %%s', id, name) FROM type_definitions
    UNION ALL
    SELECT format('compatibility %%s %%s %%s', source_type_id, target_type_id, conversion_method)
      FROM type_compatibility
    ORDER BY 1
"""
LEFTOVERS: Final = """
    SELECT relname::text FROM pg_class
     WHERE relnamespace = 'public'::regnamespace AND relname !~ '^alembic_version'
    UNION ALL
    SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""
