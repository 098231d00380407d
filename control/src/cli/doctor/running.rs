//! What a running dataplane knows of itself.

use penstock_configs::status::Status;

use super::Finding;

/// As in the dataplane, which also says it in a notice.
const WARN_AT: f64 = 0.8;

pub(super) fn check(status: &Status) -> Vec<Finding> {
    let mut findings: Vec<Finding> = status
        .notices
        .iter()
        .map(|notice| Finding::warn(format!("running as {:?}", status.name), notice.as_str(), ""))
        .collect();
    if let Some(pair) = status.snat.first().filter(|pair| pair.occupancy < WARN_AT) {
        let text = format!(
            "{} towards {} is the fullest, with {:.0} % of its ports in use",
            pair.address,
            pair.backend,
            pair.occupancy * 100.0
        );
        findings.push(Finding::good("SNAT ports", text));
    }
    findings
}

#[cfg(test)]
mod tests {
    use penstock_configs::desired::Protocol;
    use penstock_configs::status::SnatStatus;

    use super::super::Grade;
    use super::*;

    fn status(occupancy: f64, notices: &[&str]) -> Status {
        let pair = SnatStatus {
            address: [10, 0, 0, 1].into(),
            backend: ([10, 0, 0, 11], 80).into(),
            protocol: Protocol::Tcp,
            used: 1,
            resting: 0,
            capacity: 2,
            occupancy,
            growth_per_second: 0.0,
            full_in_seconds: None,
        };
        let notices = notices.iter().map(|notice| (*notice).to_owned()).collect();
        Status { name: "lb".into(), snat: vec![pair], notices, ..Status::default() }
    }

    #[test]
    fn what_the_dataplane_warns_of_the_doctor_does_too() {
        let well = check(&status(0.5, &[]));
        assert_eq!(well.len(), 1);
        assert!(well[0].grade == Grade::Good && well[0].text.contains("10.0.0.11:80 is the fullest, with 50 %"));
        let ill = check(&status(0.9, &["SNAT ports towards 10.0.0.11:80/tcp: 90 % in use; add a [[snat]] address"]));
        assert_eq!(ill.len(), 1);
        assert!(ill[0].grade == Grade::Warn && ill[0].text.contains("add a [[snat]] address"));
    }
}
