-- I26: there is at most one owner
SELECT 'users' AS place, min(id::text) AS what, format('%s owners', count(*)) AS facts
  FROM users
 WHERE is_owner
HAVING count(*) > 1
