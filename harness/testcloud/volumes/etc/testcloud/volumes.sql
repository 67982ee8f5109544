CREATE DATABASE cinder; GRANT ALL ON cinder.* TO cinder@localhost IDENTIFIED BY '$database';
