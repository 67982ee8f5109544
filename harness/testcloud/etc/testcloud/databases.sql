CREATE DATABASE keystone; GRANT ALL ON keystone.* TO keystone@localhost IDENTIFIED BY '$database';
CREATE DATABASE glance; GRANT ALL ON glance.* TO glance@localhost IDENTIFIED BY '$database';
CREATE DATABASE placement; GRANT ALL ON placement.* TO placement@localhost IDENTIFIED BY '$database';
CREATE DATABASE neutron; GRANT ALL ON neutron.* TO neutron@localhost IDENTIFIED BY '$database';
CREATE DATABASE nova; GRANT ALL ON nova.* TO nova@localhost IDENTIFIED BY '$database';
CREATE DATABASE nova_api; GRANT ALL ON nova_api.* TO nova@localhost;
CREATE DATABASE nova_cell0; GRANT ALL ON nova_cell0.* TO nova@localhost;
