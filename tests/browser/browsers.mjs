// The browsers that the tests of both drive: CHROMIUM and FIREFOX, whichever is set, without what would make them look for
// hosts of their own. `node.test` and the names below it lead to this machine.

import puppeteer from 'puppeteer-core';

export const browsers = ['chromium', 'firefox'].filter((name) => process.env[name.toUpperCase()]);

/** In Firefox a theme is chosen at the start. A certificate that nobody has signed is borne where a test says so. */
export function launch(name, { theme = 'light', acceptInsecureCerts = false } = {}) {
  const executablePath = process.env[name.toUpperCase()];
  if (name === 'chromium') {
    return puppeteer.launch({
      browser: 'chrome',
      executablePath,
      acceptInsecureCerts,
      args: [
        '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
        '--disable-component-update', '--disable-sync', '--host-resolver-rules=MAP *.test 127.0.0.1',
      ],
    });
  }
  return puppeteer.launch({
    browser: 'firefox',
    executablePath,
    acceptInsecureCerts,
    extraPrefsFirefox: {
      'layout.css.prefers-color-scheme.content-override': theme === 'dark' ? 0 : 1,
      'network.dns.localDomains': 'node.test,wsecho-sys.node.test,evil.test',
      'network.captive-portal-service.enabled': false,
      'network.connectivity-service.enabled': false,
      'browser.safebrowsing.downloads.remote.enabled': false,
      'app.normandy.enabled': false,
      'datareporting.healthreport.uploadEnabled': false,
    },
  });
}
