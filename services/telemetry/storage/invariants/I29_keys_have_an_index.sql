-- I29: a foreign key's first column leads an index
SELECT c.conrelid::regclass::text AS place, c.conname::text AS what, 'no index' AS facts
  FROM pg_constraint c
 WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace
   AND NOT EXISTS (
        SELECT 1 FROM pg_index i
          JOIN pg_class k ON k.oid = i.indexrelid
          JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
         WHERE i.indrelid = c.conrelid AND i.indisvalid
           AND (i.indpred IS NULL
             OR pg_get_expr(i.indpred, i.indrelid) = '(' || a.attname || ' IS NOT NULL)')
           AND k.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')
           AND i.indkey[0] = c.conkey[1])
