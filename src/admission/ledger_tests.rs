use super::*;
use proptest::prelude::*;

const MIB: usize = 1024 * 1024;

fn ledger(mib: usize) -> Ledger {
    Ledger::new(Budget::of(mib * MIB))
}

fn tenant(ledger: &Ledger, name: &str) -> Tenant {
    ledger.tenant(Some(format!("{name}:test:sys").parse().unwrap()))
}

#[test]
fn what_is_charged_is_held_until_it_is_dropped_and_told_by_kind_and_process() {
    let ledger = ledger(16);
    let (one, other) = (tenant(&ledger, "one"), tenant(&ledger, "other"));
    let pool = ledger.pool();
    let mut charge = pool.charge(&one, HeldAs::Events, 1000).unwrap();
    let second = pool.charge(&other, HeldAs::Content, 5 * MIB).unwrap();
    assert_eq!(ledger.held(), HeldBytes { events: 1000, content: 5 * MIB, ..HeldBytes::default() });
    charge.resize(3000);
    assert_eq!((pool.held_bytes(), one.held().events), (5 * MIB + 3000, 3000));
    let report = ledger.report();
    let names: Vec<_> = report.iter().map(|tenant| tenant.process.as_ref().unwrap().as_str()).collect();
    assert_eq!(names, ["other:test:sys", "one:test:sys"], "the fullest first");
    assert_eq!((report[0].held.content, report[1].held.total()), (5 * MIB, 3000));
    drop((charge, second));
    assert_eq!((pool.held_bytes(), ledger.report().len()), (0, 0));
    drop(pool);
    assert_eq!(ledger.budget().leased_bytes(), 0);
}

#[test]
fn a_charge_that_does_not_fit_changes_nothing() {
    let ledger = ledger(8);
    let (hog, pool) = (tenant(&ledger, "hog"), ledger.pool());
    let mut charge = pool.charge(&hog, HeldAs::Events, 3 * MIB).unwrap();
    assert_eq!(pool.charge(&hog, HeldAs::Content, 2 * MIB).unwrap_err(), OverBudget);
    assert_eq!(charge.grow(2 * MIB), Err(OverBudget));
    assert_eq!((pool.held_bytes(), hog.total(), charge.bytes()), (3 * MIB, 3 * MIB, 3 * MIB));
    // Memory that cannot be refused is counted all the same.
    let forced = pool.charge_anyway(&hog, HeldAs::Events, 6 * MIB);
    assert_eq!((hog.total(), ledger.budget().leased_bytes()), (9 * MIB, 8 * MIB));
    drop(forced);
    assert_eq!(hog.total(), 3 * MIB);
}

#[test]
fn what_nobody_can_make_give_fills_half_and_leaves_each_tenant_half_of_its_share() {
    let ledger = ledger(64);
    let [hog, late] = ["hog", "late"].map(|name| tenant(&ledger, name));
    let (pools, mut hogs) = ([ledger.pool(), ledger.pool()], Vec::new());
    while let Ok(charge) = pools[0].charge(&hog, HeldAs::Content, MIB) {
        hogs.push(charge);
    }
    assert_eq!(hogs.len(), 32);
    let mut lates = Vec::new();
    while let Ok(charge) = pools[1].charge(&late, HeldAs::Content, MIB) {
        lates.push(charge);
    }
    assert_eq!(lates.len(), 16, "half of its half");
    let clients = ledger.budget().lease(0);
    assert!(clients.cover(15 * MIB), "and clients have what is left");
}

#[test]
fn who_holds_more_than_its_share_leaves_the_reserve_to_the_others_and_is_the_first_to_give() {
    let ledger = ledger(64);
    let [hog, second, small] = ["hog", "second", "small"].map(|name| tenant(&ledger, name));
    let (here, there) = (ledger.budget().lease(1), ledger.budget().lease(1));
    let mut hog_here = Tally::new(hog.clone());
    hog_here.change(HeldAs::Queued, 0, 40 * MIB);
    assert_eq!(hog.total(), 0, "not published yet");
    hog_here.publish();
    let mut second_there = Tally::new(second.clone());
    second_there.change(HeldAs::Shared, 0, 10 * MIB);
    second_there.publish();
    assert_eq!(ledger.share_bytes(), Some(32 * MIB));
    assert_eq!((hog.claim(), second.claim(), small.claim()), {
        (LeaseReach::BeyondShare, LeaseReach::WithinShare, LeaseReach::WithinShare)
    });
    assert!(there.cover_as(10 * MIB, second.claim()));
    assert!(!here.cover_as(62 * MIB, hog.claim()), "the reserve is not for it");
    assert!(!ledger.budget().is_pressed());
    assert!(there.cover_as(14 * MIB, second.claim()), "but for others, at once");
    assert!(ledger.budget().is_pressed());
    assert!(ledger.over_share() == [hog.clone()]);
    hog_here.change(HeldAs::Queued, 40 * MIB, 0);
    hog_here.publish();
    assert!(ledger.over_share().is_empty());
    assert_eq!(ledger.share_bytes(), Some(64 * MIB), "who holds nothing has no share");
}

#[test]
fn who_is_alone_leaves_the_reserve_to_who_comes() {
    let ledger = ledger(64);
    let [hog, late] = ["hog", "late"].map(|name| tenant(&ledger, name));
    let clients = ledger.budget().lease(1);
    let mut held = Tally::new(hog.clone());
    let mut bytes = 0;
    while clients.cover_as(bytes + MIB, hog.claim()) {
        held.change(HeldAs::Queued, bytes, bytes + MIB);
        held.publish();
        bytes += MIB;
    }
    assert!(ledger.budget().bytes().unwrap() - bytes >= 7 * MIB, "{bytes}");
    let pool = ledger.pool();
    let first = pool.charge(&late, HeldAs::Link, 6 * MIB);
    assert!(first.is_ok() && ledger.budget().is_pressed() && ledger.over_share() == [hog]);
}

#[test]
fn small_tenants_do_not_lower_the_share_of_others_and_cannot_grow_the_list() {
    let ledger = ledger(16);
    let small: Vec<_> = (0..5000).map(|number| tenant(&ledger, &format!("small-{number}"))).collect();
    let pool = ledger.pool();
    let charges: Vec<_> = small.iter().map(|tenant| pool.charge(tenant, HeldAs::Events, 1000).unwrap()).collect();
    assert_eq!(ledger.share_bytes(), Some(16 * MIB));
    assert_eq!(ledger.report().len(), 5000);
    drop(charges);
    drop(small);
    tenant(&ledger, "late");
    assert!(lock(&ledger.0.tenants).all.len() <= 2 * 5000);
}

#[test]
fn threads_that_charge_and_give_back_lose_nothing() {
    let ledger = ledger(16);
    let (both, pool) = (tenant(&ledger, "both"), ledger.pool());
    std::thread::scope(|scope| {
        for seed in 1..=4usize {
            let (both, pool) = (both.clone(), pool.clone());
            scope.spawn(move || {
                let mut held = std::collections::VecDeque::new();
                for at in 0..5000 {
                    held.extend(pool.charge(&both, HeldAs::Link, (at * seed * 7919) % (MIB / 4)));
                    if held.len() > 8 {
                        held.pop_front();
                    }
                }
            });
        }
    });
    assert_eq!((both.total(), pool.held_bytes()), (0, 0));
    assert!(!both.0.is_notable.load(Ordering::Relaxed) && ledger.share_bytes() == Some(16 * MIB));
    drop(pool);
    assert_eq!(ledger.budget().leased_bytes(), 0);
}

proptest! {
    /// Counts are those of a list that is summed up each time.
    #[test]
    fn counts_are_those_of_a_naive_twin(
        steps in proptest::collection::vec((0..3usize, 0..HeldAs::ALL.len(), 0..2 * MIB, any::<bool>()), 1..120),
    ) {
        let ledger = ledger(8);
        let tenants = ["a", "b", "c"].map(|name| tenant(&ledger, name));
        let pool = ledger.pool();
        let mut charges: Vec<(usize, Charge)> = Vec::new();
        for (who, kind, bytes, adds) in steps {
            if adds || charges.is_empty() {
                let charge = match pool.charge(&tenants[who], HeldAs::ALL[kind], bytes) {
                    Ok(charge) => charge,
                    Err(OverBudget) => {
                        prop_assert!(pool.held_bytes() + bytes > 4 * MIB, "half of the budget at most is kept back");
                        continue;
                    }
                };
                charges.push((who, charge));
            } else {
                charges.swap_remove(bytes % charges.len());
            }
            let held = charges.iter().map(|(_, charge)| charge.bytes()).sum::<usize>();
            prop_assert_eq!(pool.held_bytes(), held);
            prop_assert!(pool.leased_bytes() >= held);
            for (who, tenant) in tenants.iter().enumerate() {
                for kind in HeldAs::ALL {
                    let of_kind = charges.iter().filter(|(of, charge)| *of == who && charge.kind == kind);
                    prop_assert_eq!(tenant.held().of(kind), of_kind.map(|(_, charge)| charge.bytes()).sum::<usize>());
                }
                prop_assert_eq!(tenant.total(), tenant.held().total());
            }
        }
    }
}

#[test]
fn orders_are_told_by_who_counts_them() {
    let ledger = Ledger::new(Budget::of(8 << 20));
    let orders = Arc::new(AtomicUsize::new(0));
    let tenant = ledger.tenant(Some("p:o:sys".parse().unwrap()));
    let counted = orders.clone();
    tenant.add_orders(move || Some(counted.load(Ordering::Relaxed)));
    tenant.add_orders(|| None);
    assert!(ledger.report().is_empty());
    orders.store(77, Ordering::Relaxed);
    assert_eq!((ledger.report()[0].held.orders, ledger.held().orders, tenant.held().total()), (77, 77, 77));
}
