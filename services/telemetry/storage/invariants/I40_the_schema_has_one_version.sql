-- I40: the database stands at one revision
SELECT 'alembic_version' AS place, coalesce(min(version_num), '')::text AS what,
       format('%s revisions', count(*)) AS facts
  FROM alembic_version
HAVING count(*) <> 1
