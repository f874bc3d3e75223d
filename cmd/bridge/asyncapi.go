package main

import "github.com/hookbus/bridge/asyncapi"

type asyncapiCmd struct {
	JSON bool `help:"Changes nothing: the document is always JSON."`
}

func (asyncapiCmd) Help() string {
	return "The subjects follow BRIDGE_SUBJECT_PREFIX. The admin listener serves the same at /asyncapi.json."
}

func (asyncapiCmd) Run(c *cli) error {
	cfg, err := loadConfig(c.environ)
	if err != nil {
		return err
	}
	document, err := asyncapi.Document(cfg.SubjectPrefix, version)
	if err != nil {
		return err
	}
	_, err = c.stdout.Write(append(document, '\n'))
	return err
}
