// The demo's page: what stands on it is in the modules, each with channels of its own.

import { $ } from './channels.js';
import { me } from './room.js';
import './stage.js';
import './tokens.js';
import './rates.js';

$('me').textContent = me.name;
